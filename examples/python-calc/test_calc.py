"""The unit tests of calc.py. The first line of each docstring is shown to the student."""

import unittest


def evaluate(text):
    # Imported late: the grader imports this module to list the tests, and runs no student's code.
    import calc

    return calc.evaluate(text)


class Evaluation(unittest.TestCase):
    problem = "evaluation"

    def test_1_number(self):
        """a number is itself"""
        self.assertEqual(evaluate("42"), 42)

    def test_2_sum(self):
        """sums and differences, with and without spaces"""
        self.assertEqual(evaluate("1+2 - 4 + 10"), 9)

    def test_3_left_to_right(self):
        """differences and quotients go from left to right"""
        self.assertEqual(evaluate("10 - 3 - 2"), 5)
        self.assertEqual(evaluate("100 / 5 / 2"), 10)

    def test_4_precedence(self):
        """products before sums"""
        self.assertEqual(evaluate("2 + 3 * 4"), 14)
        self.assertEqual(evaluate("2 * 3 + 4 * 5 - 6 / 2"), 23)

    def test_5_parentheses(self):
        """parentheses first, also nested"""
        self.assertEqual(evaluate("(2 + 3) * 4"), 20)
        self.assertEqual(evaluate("2 * (3 - (4 - 1)) + ((7))"), 7)

    def test_6_sign(self):
        """a minus before a number or a parenthesis"""
        self.assertEqual(evaluate("-3 + 5"), 2)
        self.assertEqual(evaluate("2 * -(1 + 2)"), -6)


class Errors(unittest.TestCase):
    problem = "errors"

    def check(self, *texts):
        for text in texts:
            with self.assertRaises(ValueError, msg=repr(text)):
                evaluate(text)

    def test_1_empty(self):
        """nothing at all is a ValueError"""
        self.check("", "   ")

    def test_2_letters(self):
        """what is not arithmetic is a ValueError, and is not executed"""
        self.check("two", "2 + x", "__import__('os').getpid()")

    def test_3_unclosed(self):
        """a parenthesis that is not closed is a ValueError"""
        self.check("(1 + 2", "((1)")

    def test_4_unfinished(self):
        """an operator with nothing after it is a ValueError"""
        self.check("1 +", "2 * (3 -")

    def test_5_rest(self):
        """anything after the end is a ValueError"""
        self.check("1 2", "(1) 2", "1)")

"""Takes one operator after the other, from left to right, and never looks for mistakes."""

import operator
import re

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def evaluate(text):
    print("evaluating", text)
    tokens = re.findall(r"\d+|[-+*/]", text)
    if not tokens:
        raise ValueError("nothing to evaluate")
    value = int(tokens[0])
    for at in range(1, len(tokens) - 1, 2):
        value = OPERATORS[tokens[at]](value, int(tokens[at + 1]))
    return value

"""Arithmetic on whole and decimal numbers, by recursive descent."""

import re

TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|(\S))")


def evaluate(text):
    tokens = [match.groups() for match in TOKEN.finditer(text)]
    tokens.append((None, None))
    value, rest = _sum(tokens, 0)
    if rest != len(tokens) - 1:
        raise ValueError(f"unexpected {tokens[rest][0] or tokens[rest][1]}")
    return value


def _sum(tokens, at):
    value, at = _product(tokens, at)
    while tokens[at][1] in ("+", "-"):
        sign = 1 if tokens[at][1] == "+" else -1
        right, at = _product(tokens, at + 1)
        value += sign * right
    return value, at


def _product(tokens, at):
    value, at = _atom(tokens, at)
    while tokens[at][1] in ("*", "/"):
        operator = tokens[at][1]
        right, at = _atom(tokens, at + 1)
        value = value * right if operator == "*" else value / right
    return value, at


def _atom(tokens, at):
    number, symbol = tokens[at]
    if number is not None:
        return float(number) if "." in number else int(number), at + 1
    if symbol == "-":
        value, at = _atom(tokens, at + 1)
        return -value, at
    if symbol == "(":
        value, at = _sum(tokens, at + 1)
        if tokens[at][1] != ")":
            raise ValueError("a parenthesis is not closed")
        return value, at + 1
    raise ValueError(f"unexpected {symbol or 'end'}")

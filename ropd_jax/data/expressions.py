"""A small grammar for the formulas in answers: numbers, names, ``+ - * / **``, brackets, and known functions.

    "42*(30 - 4 - 23)"  -- parse -->  tree  -- value -->      Fraction(126)
    "-6*x**3 + 2*x + C" -- parse -->  tree  -- to_sympy -->   a sympy expression

The text is read by ``ast.parse``, which only builds a tree, and the tree is walked node by node. No Python is executed,
in contrast to ``eval`` and to sympy's ``parse_expr``, which run any Python in an answer. Numbers are bounded:
``9**9**9**9`` raises `TooLarge` at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sympy

LONGEST = 2_000  # characters of a formula
MOST_BITS = 10_000  # of a number's numerator and denominator
HIGHEST_POWER = 1_000

FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc")
    + ("sinh", "cosh", "tanh", "coth", "asinh", "acosh", "atanh", "exp", "log", "ln", "sqrt", "cbrt", "Abs", "erf")
)
CONSTANTS = frozenset(("pi", "E", "I"))


class NotAFormula(ValueError):
    """The text is outside the grammar."""


class TooLarge(ValueError):
    """The text is in the grammar, but its numbers are too large to decide anything."""


def parse(text: str) -> ast.expr:
    """The tree of a formula; it contains only nodes of the grammar.

    Raises:
        NotAFormula: the text is not such a formula.
    """
    if len(text) > LONGEST:
        raise NotAFormula(f"{len(text)} characters; expected at most {LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        for node in ast.walk(tree):
            _check(node)
    except (SyntaxError, MemoryError, RecursionError, ValueError) as error:  # raised by ast.parse on arbitrary text
        raise NotAFormula(f"{text!r:.100} is not a formula ({type(error).__name__})") from error
    return tree


_SPELLING = (
    (re.compile("\u03c0"), " pi "),
    (re.compile("\u221a\\s*(\\d+|[a-z](?![a-z]))"), r"sqrt(\1)"),
    (re.compile("\u221a"), "sqrt"),
    (re.compile(r"\\sqrt\s*(\d|[a-z](?![a-z]))"), r"sqrt(\1)"),
    (re.compile(r"\\([A-Za-z]+)"), r"\1"),
    (re.compile(r"\{"), "("),
    (re.compile(r"\}"), ")"),
    (re.compile(r"\^"), "**"),
    (re.compile(r"(?<![A-Za-z_])([b-df-hj-zB-DF-HJ-Z])(?=\()"), r"\1*"),  # x(x+1)
    (re.compile(r"(?<=[\d)])\s*(?=[A-Za-z(])|(?<=\))\s*(?=\d)|(?<=[A-Za-z])\s+(?=[A-Za-z(])"), "*"),
)


def spelled_out(text: str) -> str:
    """A formula in mathematical notation, converted to the grammar: ``3x^{2}`` is ``3*x**(2)``."""
    for pattern, by in _SPELLING:
        text = pattern.sub(by, text)
    return text


def _check(node: ast.AST) -> None:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return
        case ast.Call(func=ast.Name(id=name), args=[_], keywords=[]) if name in FUNCTIONS:
            return
        case ast.Call(func=ast.Name(id="log"), args=[_, _], keywords=[]):  # log(x, base)
            return
        case ast.BinOp() | ast.UnaryOp() | ast.Name():
            return
        case ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Pow() | ast.UAdd() | ast.USub() | ast.Load():
            return
    raise NotAFormula(f"{type(node).__name__} is not part of the grammar")


def numbers(tree: ast.expr) -> Iterator[int | float]:
    """Every number that is written in the formula, in no particular order."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int | float)
            yield node.value


def value(node: ast.expr) -> Fraction:
    """The exact value of a formula without names and functions.

    Raises:
        NotAFormula: it has names or functions.
        TooLarge: an exponent that is not a whole number of at most 1,000, or a number of more than 10,000 bits.
        ZeroDivisionError: it divides by zero.
    """
    match node:
        case ast.Constant(value=int() | float() as number):
            return _fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=a):
            return -value(a)
        case ast.UnaryOp(operand=a):
            return value(a)
        case ast.BinOp(left=a, op=op, right=b):
            return _bounded(_operation(op, value(a), value(b)))
    raise NotAFormula("a name or a function; expected numbers only")


def _fraction(number: int | float) -> Fraction:
    """The number as it is written: 0.1 is 1/10."""
    if number in (float("inf"), float("-inf")):  # 1e999
        raise TooLarge("a number beyond the range of floats")
    return _bounded(Fraction(repr(number)) if isinstance(number, float) else Fraction(number))


def _operation(op: ast.operator, a: Fraction, b: Fraction) -> Fraction:
    match op:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div():
            return a / b
    _check_power(a, b)
    return Fraction(a ** int(b))


def _check_power(a: Fraction, b: Fraction) -> None:
    bits = max(a.numerator.bit_length(), a.denominator.bit_length())
    if b.denominator != 1 or abs(b) > HIGHEST_POWER or bits * abs(b) > MOST_BITS:
        raise TooLarge(f"a power of {b!s:.20}; expected a whole number of at most {HIGHEST_POWER}")


def _bounded(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > MOST_BITS:
        raise TooLarge(f"a number of more than {MOST_BITS} bits")
    return number


def to_sympy(node: ast.expr) -> sympy.Expr:
    """The formula in sympy: a name is a symbol, unless it is a constant (``pi``, ``E``, ``I``).

    It is built with operators and the functions in `FUNCTIONS`, never from text. Use it in a sandboxed child process:
    sympy can take forever on small expressions.

    Raises:
        TooLarge: see `value`, for powers of numbers.
    """
    import sympy

    match node:
        case ast.Constant(value=float() as number):
            return sympy.Float(repr(number))
        case ast.Constant(value=int() as number):
            return sympy.Integer(number)
        case ast.Name(id=name):
            return getattr(sympy, name) if name in CONSTANTS else sympy.Symbol(name)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return getattr(sympy, name)(*map(to_sympy, arguments))
        case ast.UnaryOp(op=ast.USub(), operand=a):
            return -to_sympy(a)
        case ast.UnaryOp(operand=a):
            return to_sympy(a)
        case ast.BinOp(left=a, op=op, right=b):
            return _sympy_operation(op, to_sympy(a), to_sympy(b))
    raise AssertionError(ast.dump(node))  # `parse` rejects all other nodes


def _sympy_operation(op: ast.operator, a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    match op:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div():
            return a / b
    if b.is_Number and abs(b) > HIGHEST_POWER:
        raise TooLarge(f"a power above {HIGHEST_POWER}")
    if a.is_Rational and b.is_Integer:
        _check_power(Fraction(int(a.p), int(a.q)), Fraction(int(b)))
    return a**b

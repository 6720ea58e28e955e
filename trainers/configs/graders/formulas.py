"""Formulas that combine the scores of several graders: arithmetic and eight functions, never code."""

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_FORMULA_CHARACTERS = 1000
MAX_FORMULA_DEPTH = 50
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": lambda *values: min(values),
    "max": lambda *values: max(values),
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
FORMULA_FUNCTIONS = tuple(_FUNCTIONS)
_MANY_ARGUMENTS = frozenset({"min", "max"})
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
    # Of floats, whose largest result is an OverflowError, not an integer of a million digits.
    ast.Pow: math.pow,
}
# What OpenAI's formulas do not have, but Python's grammar does.
_FOREIGN = re.compile(r"\*\*|//|[^\w\s.,()+\-*/^]")


class FormulaUndefined(ValueError):
    """The formula has no finite value for the scores, such as after a division by zero."""


class Formula:
    """A parsed formula. Raises ValueError for anything but arithmetic of names and numbers.

    Python's parser reads the text, of which only the listed nodes are accepted and nothing is executed. `^`
    is the power, which binds most strongly and to the right, as in mathematics.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_FORMULA_CHARACTERS:
            raise ValueError(f"the formula is longer than {MAX_FORMULA_CHARACTERS:,} characters")
        foreign = _FOREIGN.search(text)
        if foreign is not None:
            raise ValueError(
                f"the formula contains {foreign[0]!r}; it may contain names, numbers, parentheses, the "
                f"operators + - * / ^ and the functions {', '.join(_FUNCTIONS)}"
            )
        try:
            self._root = ast.parse(text.strip().replace("^", "**"), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(f"the formula {text!r} is not arithmetic") from None
        self.variables: frozenset[str] = frozenset(_check(self._root))

    def evaluate(self, values: Mapping[str, float]) -> float:
        """Return the value for the scores of the graders by name; raises FormulaUndefined."""
        try:
            value = float(_evaluate(self._root, values))
        except (ArithmeticError, ValueError) as error:
            raise FormulaUndefined(f"the formula has no value for {_describe(values)}: {error}") from None
        if not math.isfinite(value):
            raise FormulaUndefined(f"the formula is not finite for {_describe(values)}")
        return value


def _check(root: ast.expr) -> set[str]:
    """Return the names of a formula; raises ValueError for a node that is not arithmetic."""
    names: set[str] = set()
    nodes: list[tuple[ast.AST, int]] = [(root, 1)]
    while nodes:
        node, depth = nodes.pop()
        if depth > MAX_FORMULA_DEPTH:
            raise ValueError(f"the formula is nested more deeply than {MAX_FORMULA_DEPTH} levels")
        match node:
            case ast.Name(id=name):
                names.add(name)
            case ast.Constant(value=int() | float() as value) if type(value) is not bool:
                _check_number(value)
            case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
                nodes.append((operand, depth + 1))
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
                nodes += [(left, depth + 1), (right, depth + 1)]
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                if not args or (len(args) > 1 and name not in _MANY_ARGUMENTS):
                    raise ValueError(
                        f"{name}() takes {'one or more' if name in _MANY_ARGUMENTS else 'one'} "
                        f"argument{'s' if name in _MANY_ARGUMENTS else ''}, not {len(args)}"
                    )
                nodes += [(argument, depth + 1) for argument in args]
            case _:
                raise ValueError(f"the formula contains {ast.unparse(node)[:80]!r}, which is not arithmetic")
    return names


def _check_number(value: float) -> None:
    try:
        if math.isfinite(float(value)):
            return
    except OverflowError:
        pass
    raise ValueError("a number of the formula is too large")


def _evaluate(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Name(id=name):
            return float(values[name])
        case ast.UnaryOp(op=operator, operand=operand):
            value = _evaluate(operand, values)
            return -value if isinstance(operator, ast.USub) else value
        case ast.BinOp(left=left, op=operator, right=right):
            return _OPERATORS[type(operator)](_evaluate(left, values), _evaluate(right, values))
        case ast.Call(func=ast.Name(id=name), args=args):
            return float(_FUNCTIONS[name](*(_evaluate(argument, values) for argument in args)))
    constant: Any = node
    return float(constant.value)


def _describe(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in values.items())

"""What Python source defines, told without running it."""

import ast
import symtable
from importlib.util import decode_source


def defines(source: bytes, name: str) -> bool:
    """Whether a module of this source has `name`, as far as that shows.

    Raises:
        SyntaxError: when it is no Python of this version; ValueError when it is no text.
    """
    text = decode_source(source)
    tree = ast.parse(text)
    stars = (node.names[0].name == "*" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    if any(stars):
        return True
    symbols = symtable.symtable(text, "?", "exec").get_symbols()
    known = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
    return name in known or "__getattr__" in known

"""Docstrings use Sphinx's roles and formulas; this makes Markdown of them."""
import re

import griffe

ROLE = re.compile(r':(?:class|func|meth|mod|attr|data):`~?\.?([^`]+)`')
FORMULA = re.compile(r'^( *)\.\. math::(.*(?:\n(?:\1 +\S.*|\s*(?=\n\1 )))*)', re.M)


class SphinxToMarkdown(griffe.Extension):
    """Roles become code, ``.. math::`` becomes a formula."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(_code, FORMULA.sub(_formula, obj.docstring.value))


def _code(match: re.Match) -> str:
    return f'`{match[1].removeprefix("wsbcn_mmseg.") if "wsbcn_mmseg" in match[1] else match[1]}`'


def _formula(match: re.Match) -> str:
    """A formula per line; the marks that align lines are left out."""
    indent, text = match.groups()
    formulas = [formula.replace('&', '') for formula in ' '.join(text.split()).split(r'\\')]
    return ''.join(f'\n{indent}$$\n{indent}{formula.strip()}\n{indent}$$\n' for formula in formulas)

"""What the site has beyond the files of ``docs/``: pages from elsewhere, the notebook, and formulas as MathML."""
import html
import json
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent.parent
ELSEWHERE = {  # file of the repository: page of the site
    'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md', 'README.md': 'index.md',
    **{name: name for name in ('configs/README.md', 'configs/coco/README.md', 'configs/sthv1/README.md')}
}
NOTEBOOK = 'notebook.ipynb'
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
LINK = re.compile(r'\]\((?!https?:|data:|#)([^)#\s]+)')


def on_files(files, config):
    for name, page in ELSEWHERE.items():
        if page != 'index.md':
            files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    cells = json.loads((ROOT / 'docs' / NOTEBOOK).read_text())['cells']
    files.append(File.generated(config, 'notebook.md', content='\n\n'.join(map(_cell, cells))))
    return files


def _cell(cell: dict) -> str:
    """A cell of a notebook, with its outputs, in Markdown."""
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
        return source
    return '\n\n'.join([f'```python\n{source}\n```', *filter(None, map(_output, cell['outputs']))])


def _output(output: dict) -> str:
    data = output.get('data', {})
    if 'image/png' in data:
        return f'![Output](data:image/png;base64,{"".join(data["image/png"]).strip()})'
    text = ''.join(output.get('text', data.get('text/plain', [])))
    return f'```text\n{text.rstrip()}\n```' if text.strip() else ''


def on_page_markdown(markdown, page, **_):
    """Links between files of the repository become links between pages of the site."""
    uri = page.file.src_uri
    source = {page_uri: name for name, page_uri in ELSEWHERE.items() if name != 'README.md'}.get(uri, f'docs/{uri}')

    def translate(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        target = ELSEWHERE.get(target, target.removeprefix('docs/')).replace('.ipynb', '.md')
        return '](' + posixpath.relpath(target, posixpath.dirname(uri) or '.')

    return LINK.sub(translate, markdown)


def on_page_content(content, **_):
    return FORMULA.sub(_mathml, content)


def _mathml(match: re.Match) -> str:
    tag, formula = match.groups()
    mathml = convert(html.unescape(formula).strip(), display='block' if tag == 'div' else 'inline')
    return f'<{tag} class="formula">{mathml}</{tag}>'

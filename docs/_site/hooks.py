"""What mkdocs needs to know of this repository: pages that lie outside docs/, and links that lead there.

On the web host of a repository `../configs/x.py` is a link like any other. On the site it becomes a page with the file.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# files of the repository that are pages of their own, or stand for one
PAGES = {'README.md': 'index.md', 'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md'}
SOURCES = 'source'  # the folder of the site with the other files that pages link to
LANGUAGES = {'.py': 'python', '.sh': 'bash', '.yml': 'yaml', '.c': 'c', '.toml': 'toml'}
# a link's target, outside code
CODE_OR_LINK = re.compile(r'```.*?```|`[^`\n]*`|(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))', re.DOTALL)


# a number and its unit, and what stands between two numbers of one thing
UNIT = re.compile(r'(?<=\d) (?=(?:s|min|M|G|[KMG]i?B|images)\b)')
BETWEEN = re.compile(r'(?<=\d) (x|to) (?=\d)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the changelog, the rules for contributors, and every other file of the repository that a page links to."""
    for name in ('CHANGELOG.md', 'CONTRIBUTING.md'):
        files.append(File.generated(config, PAGES[name], content=with_links((ROOT / name).read_text(), name)))
    texts = [(file.content_string, f'docs/{file.src_uri}') for file in files.documentation_pages()]
    texts += [((ROOT / name).read_text(), name) for name in ('CHANGELOG.md', 'CONTRIBUTING.md')]
    for target in sorted({target for text, name in texts for target in outside(text, name)}):
        files.append(File.generated(config, source_page(target), content=shown(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to files outside docs/ to the pages that show them."""
    if page.file.generated_by:
        return markdown
    return unbroken_cells(with_links(markdown, f'docs/{page.file.src_uri}'))


def unbroken_cells(text: str) -> str:
    """A page whose narrow columns do not tear numbers from their units."""
    lines = text.split('\n')
    for i, line in enumerate(lines):
        if line.startswith('|'):
            parts = line.split('`')
            parts[::2] = [BETWEEN.sub('\u00a0\\1\u00a0', UNIT.sub('\u00a0', part)) for part in parts[::2]]
            lines[i] = '`'.join(parts)
    return '\n'.join(lines)


def outside(text: str, name: str) -> set[str]:
    """The files outside docs/ that a text links to and that are no page, from the root of the repository."""
    targets = {found.group(1) for found in CODE_OR_LINK.finditer(text) if found.group(1)}
    paths = {resolved(target, name) for target in targets if ':' not in target}
    return {path for path in paths if not path.startswith('docs/') and path not in PAGES and (ROOT / path).is_file()}


def with_links(text: str, name: str) -> str:
    """A text of the repository with its links as they are on the site."""
    here = PAGES.get(name, name.removeprefix('docs/'))

    def on_site(found: re.Match) -> str:
        target, anchor = found.group(1), found.group(2) or ''
        if target is None or ':' in target:
            return found.group()
        path = resolved(target, name)
        if path.startswith('docs/'):
            page = path.removeprefix('docs/')
        elif path in PAGES or (ROOT / path).is_file():
            page = PAGES.get(path) or source_page(path)
        else:
            return found.group()  # mkdocs says that it leads nowhere
        return posixpath.relpath(page, posixpath.dirname(here) or '.') + anchor

    return CODE_OR_LINK.sub(on_site, text)


def resolved(target: str, name: str) -> str:
    """A link in the file `name`, from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def source_page(path: str) -> str:
    return f'{SOURCES}/{path}.md'


def shown(path: str) -> str:
    """A page with one file of the repository."""
    text = (ROOT / path).read_text()
    fence = '`' * (3 + max((len(run) for run in re.findall('`{3,}', text)), default=0))
    language = LANGUAGES.get(Path(path).suffix, 'text')
    meta = '---\nsearch:\n  exclude: true\nhide: [toc]\n---\n'
    return f'{meta}# {Path(path).name}\n\n`{path}`\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n'

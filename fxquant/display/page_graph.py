"""A graph before and after, side by side: what was folded, fused, added, refused stands out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from html import escape

from fxquant.display.figures import Graph, Line
from fxquant.display.page_table import RowIds, text_html

Pair = tuple[Line | None, Line | None]


def graph_html(graph: Graph, ids: RowIds, heading: str) -> str:
    """Return the lines of both graphs, those of one node beside each other."""
    pairs = list(aligned(graph.before, graph.after))
    has_before = bool(graph.before)
    rows = "\n".join(_pair(before, after, ids, has_before) for before, after in pairs)
    sides = '<div class="pair sides"><div>before</div><div>after</div></div>' if has_before else ""
    kind = "graph two" if has_before else "graph one"
    return (
        f'<div class="{kind} block"><{heading}>{escape(graph.title)}</{heading}>'
        f'<p class="note">{text_html(graph.note)}</p>'
        '<label class="only"><input type="checkbox"> only what was changed</label>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(graph.title)}">'
        f"{sides}{rows}</div></div>"
    )


def aligned(before: Sequence[Line], after: Sequence[Line]) -> Iterator[Pair]:
    """Yield the lines of both in order, as pairs where they are of one node.

    >>> a, b, c = (Line(name, "") for name in "abc")
    >>> [(x and x.name, y and y.name) for x, y in aligned([a, b], [a, c])]
    [('a', 'a'), ('b', None), (None, 'c')]
    """
    names = [line.name for line in before], [line.name for line in after]
    done, made = 0, 0
    matcher = SequenceMatcher(a=names[0], b=names[1], autojunk=False)
    for first, second, size in matcher.get_matching_blocks():
        yield from ((line, None) for line in before[done:first])
        yield from ((None, line) for line in after[made:second])
        done, made = first + size, second + size
        yield from zip(before[first:done], after[second:made], strict=True)


def _pair(before: Line | None, after: Line | None, ids: RowIds, has_before: bool) -> str:
    if before is None:
        kind = "new" if has_before else "same" if after is None or not after.notes else "changed"
    elif after is None:
        kind = "gone"
    else:
        is_same = before.text == after.text and not before.notes and not after.notes
        kind = "same" if is_same else "changed"
    cells = [_line(before, ids)] * has_before + [_line(after, ids)]
    return f'<div class="pair {kind}">{"".join(cells)}</div>'


def _line(line: Line | None, ids: RowIds) -> str:
    if line is None:
        return '<div class="none"></div>'
    statement, mark, comment = escape(line.text).partition("  # ")
    code = statement + (f'  <span class="what">#\xa0{comment}</span>' if mark else "")
    if line.row in ids.by_name and code.startswith(escape(line.name)):
        name = escape(line.name)
        code = ids.link(line.row, name) + code[len(name) :]
    notes = "".join(
        f'<span class="note {note.kind}">{text_html(note.text)}</span>' for note in line.notes
    )
    row = f' data-row="{ids.by_name[line.row]}"' if line.row in ids.by_name else ""
    return f"<div{row}><code>{code}</code>{notes}</div>"

"""A report's tables in LaTeX: grouped headings, one number format a column, as wide as a column or the page. No torch.

pdflatex alone sets them: all text is ASCII. What it has no letter for is printed as its code point, U+4E2D; XeLaTeX and
LuaLaTeX print the letter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench.config.settings import ReportSettings
from bench.reporting import contamination, options, origin, significance
from bench.reporting.further import Section
from bench.reporting.summary import CHOSEN, DEPARTS, MEANINGS, OUTSIDE, SHORT
from bench.reporting.tables import DASH, PUBLISHED, Block, Line
from bench.store.frame import RECALLS, Runs

COLUMN, PAGE = 229.0, 469.0  # points: the width of a column and of the text in a two-column article of 10 pt
MOST_ROWS = 40  # of a block that is shown whole, and of a table that holds several blocks
_LONGEST = 55  # rows of a float; more would not fit a page
_NOTE = 7.0  # points: the letters of deviations and marks
_SEP = 2.0  # points: half the space between two columns
_SIZES = {"small": 9.0, "footnotesize": 8.0, "scriptsize": 7.0}

HEAD = r"""% Needs \usepackage{booktabs}. Numbers are plain decimals, one format a column.
\DeclareRobustCommand{\petlbest}[1]{\textbf{#1}}
\DeclareRobustCommand{\petlsecond}[1]{\underline{#1}}
\DeclareRobustCommand{\petlchar}[1]{\ifdefined\Umathchar\char"#1\relax\else{\tiny U+#1}\fi}
"""


@dataclass(frozen=True)
class _Cell:
    """Text of one cell: `main`, then in small letters `note` (a deviation, a mark); `command` is around `main`."""

    main: str
    note: str = ""
    command: str = ""


@dataclass(frozen=True)
class _Column:
    """One column: its key, its heading, and its cells; words are set to the left, numbers to the right.

    stacked: the heading is broken into short lines.
    """

    key: str
    head: str
    cells: tuple[_Cell, ...]
    words: bool = False
    stacked: bool = False

    @property
    def heads(self) -> list[str]:
        """The lines of its heading: one, or if stacked the parts between spaces and behind hyphens."""
        return re.findall(r"[^\s-]+-?|-", self.head) if self.stacked else [self.head]

    @property
    def split(self) -> bool:
        """Whether it is two columns of the tabular, numbers and notes."""
        return not self.words and any(cell.note for cell in self.cells)

    def width(self, size: float) -> float:
        """Its natural width in points, without the space beside it."""
        main = max(width(cell.main, size) for cell in self.cells) if self.cells else 0.0
        note = max((width(cell.note, _NOTE) for cell in self.cells), default=0.0) if self.split else 0.0
        return max(main + note + 2.0 * self.split, *(width(line, size) for line in self.heads))


def tables(runs: Runs, parts: Sequence[Block]) -> str:
    """table.tex: the blocks in one table, or in one each where they are long or the sweep file says so."""
    asked = options.of(runs)
    shown = [_chosen(block, asked) for block in parts]
    together = asked.group != "separate" and sum(len(block.lines) for block in shown) <= MOST_ROWS
    groups = [shown] if together else [[block] for block in shown]
    out = [f"% {_comment(runs.sweep)}: written by python -m bench.report.", HEAD]
    for number, group in enumerate(groups, 1):
        label = re.sub(r"[^A-Za-z0-9]+", "-", runs.sweep).strip("-") + (f"-{number}" if len(groups) > 1 else "")
        out += _float(group, asked, label)
    return "\n".join(out) + "\n"


def section(table: Section) -> str:
    """A further table of the report, as text."""
    names = [str(name) for name in table.shown.columns]
    rows = table.shown.astype(str).to_numpy().tolist()[:_LONGEST]
    columns = [_Column(name, name, tuple(_Cell(row[i]) for row in rows), words=i == 0) for i, name in enumerate(names)]
    if sum(column.width(min(_SIZES.values())) + 2 * _SEP for column in columns) > PAGE:
        columns = [replace(column, stacked=not column.words) for column in columns]
    body = [[column.cells[i] for column in columns] for i in range(len(rows))]
    heads = [" & ".join(_head(column) for column in columns) + r" \\"]
    note = [f"The first {len(rows)} of {len(table.shown)} rows; {table.name}.csv has all."]
    notes = [table.note, *(note if len(rows) < len(table.shown) else [])]
    return "\n".join([HEAD, *_environment(columns, heads, body, f"{table.title}.", table.name, notes)]) + "\n"


def _chosen(block: Block, asked: ReportSettings) -> Block:
    """The block with the rows that a paper shows: all, or of each method the one that validation chose."""
    lines, flags = block.lines, block.rows["chosen"].tolist()
    if asked.rows == "chosen" or (asked.rows == "auto" and len(lines) > MOST_ROWS):
        lines = tuple(line for line, chosen in zip(lines, flags, strict=True) if chosen is not False)
    lines = lines[:_LONGEST]
    if len(lines) == len(block.lines):
        return block
    left = f"{len(block.lines)} rows, of which {len(lines)} are shown; table.csv has all"
    return replace(block, lines=lines, facts=(*block.facts, ("Rows", left)))


def _float(blocks: Sequence[Block], asked: ReportSettings, label: str) -> list[str]:
    lines = [line for block in blocks for line in block.lines]
    keys = [*(asked.columns or ("params", "seeds", *RECALLS))]
    columns = [_Column("method", "Method", tuple(map(_method, lines)), words=True)]
    if any("recipe" in block.columns for block in blocks):
        columns.append(_Column("recipe", "Recipe", tuple(_Cell(line.recipe) for line in lines), words=True))
    columns += [_column(key, lines) for key in keys]
    body: list[str | list[_Cell]] = []
    at = 0
    for block in blocks:
        body += ([r"\midrule"] if body else []) + ([_heading(block, columns)] if len(blocks) > 1 else [])
        for _ in block.lines:
            body.append([column.cells[at] for column in columns])
            at += 1
    caption = asked.caption or _caption(blocks, any(cell.note for c in columns if c.key in RECALLS for cell in c.cells))
    return _environment(columns, _heads(columns), body, caption, label, list(_notes(blocks)))


def _environment(
    columns: Sequence[_Column],
    heads: Sequence[str],
    body: Sequence[str | list[_Cell]],
    caption: str,
    label: str,
    notes: Sequence[str],
) -> list[str]:
    """The float: `table` where it fits a column, else `table*`, in the largest letters that fit; words wrap if need be.

    The widths are estimates for Computer Modern, on the safe side.
    """
    name, size, words = _fit(columns)
    specs = [
        (f"p{{{words:.0f}pt}}" if words else "l") if column.words else r"r@{\,}l" if column.split else "r"
        for column in columns
    ]
    return [
        rf"\begin{{{name}}}[tbp]",
        r"\centering\emergencystretch=3em",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', label)}}}",
        rf"\{size}\setlength{{\tabcolsep}}{{{_SEP:g}pt}}",
        rf"\begin{{tabular}}{{@{{}}{''.join(specs)}@{{}}}}",
        r"\toprule",
        *heads,
        r"\midrule",
        *(each if isinstance(each, str) else _row(each, columns, words > 0) for each in body),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize\raggedright {escape(note)}}}" for note in notes),
        rf"\end{{{name}}}",
        "",
    ]


def _fit(columns: Sequence[_Column]) -> tuple[str, str, float]:
    """(environment, size of letters, width of each column of words in points; 0: as wide as they are)."""
    words = [column for column in columns if column.words]

    def room(page: float, size: float) -> float:
        gaps = 2 * _SEP * (len(columns) - 1)
        return page - gaps - sum(column.width(size) for column in columns if not column.words)

    for name, page, sizes in (("table", COLUMN, ("small", "footnotesize")), ("table*", PAGE, tuple(_SIZES))):
        for size in sizes:
            if sum(column.width(_SIZES[size]) for column in words) <= room(page, _SIZES[size]):
                return name, size, 0.0
    for size in ("footnotesize", "scriptsize"):
        each = room(PAGE, _SIZES[size]) / len(words)
        if each >= 90:
            return "table*", size, each
    return "table*", "scriptsize", max(room(PAGE, _SIZES["scriptsize"]) / len(words), 40.0)


def _method(line: Line) -> _Cell:
    config = line.config.removesuffix(CHOSEN)
    return _Cell(options.named(line.title, config) + CHOSEN * line.chosen)


def _column(key: str, lines: Sequence[Line]) -> _Column:
    if key in RECALLS:
        cells = tuple(_recall(line, RECALLS.index(key)) for line in lines)
        return _Column(key, "mR" if key == "mean_recall" else f"R@{key[5:]}", cells)
    if key == "seeds":
        return _Column(key, "Seeds", tuple(_Cell(line.seeds + line.marks) for line in lines))
    head, units, value = _COSTS[key]
    values = [value(line) for line in lines]
    most = max((each for each in values if each is not None), default=0.0)
    unit, size = next(((name, size) for name, size in units if most >= size), units[-1])
    shares = [each / size for each in values if each]
    decimals = 3 if shares and min(shares) < 0.05 else 2
    texts = [DASH if each is None else f"{each / size:.{decimals}f}" for each in values]
    return _Column(key, f"{head} ({unit})", tuple(map(_Cell, texts)))


Value = Callable[[Line], float | None]
_COSTS: dict[str, tuple[str, tuple[tuple[str, float], ...], Value]] = {
    "params": ("Params", (("M", 1e6), ("k", 1e3)), lambda line: line.params),
    "train_seconds": ("Time", (("h", 3600.0), ("min", 60.0), ("s", 1.0)), lambda line: line.time.value),
    "peak_bytes": ("Memory", (("GB", 1e9), ("MB", 1e6)), lambda line: line.memory.value),
    "flops_per_pair": ("FLOPs", (("G", 1e9), ("M", 1e6)), lambda line: line.flops.value),
}


def _recall(line: Line, index: int) -> _Cell:
    cell = line.recalls[index]
    text = cell.text.removesuffix(significance.TIED)
    note = (f"±{cell.std}" if cell.std else "") + significance.TIED * (text != cell.text)
    return _Cell(text, note, "petlbest" if cell.best else "petlsecond" if cell.second else "")


def _row(cells: Sequence[_Cell], columns: Sequence[_Column], wrapped: bool) -> str:
    out = []
    for cell, column in zip(cells, columns, strict=True):
        main = escape(cell.main)
        main = rf"\{cell.command}{{{main}}}" if cell.command else main
        if column.words:
            out.append(rf"\raggedright\hangindent=1em {main}" if wrapped and main else main)
        elif column.split:
            out.append(f"{main} & {{\\scriptsize {escape(cell.note)}}}" if cell.note else f"{main} & ")
        else:
            out.append(main)
    return " & ".join(out).rstrip() + r" \\"


def _heads(columns: Sequence[_Column]) -> list[str]:
    """One line that names the directions over their columns, and one that names the columns."""
    lines = [" & ".join(_head(column) for column in columns) + r" \\"]
    spans: list[tuple[str, int, int]] = []  # title, first and last column of the tabular
    at = 1
    for column in columns:
        title = {"i2t": "Image-to-text", "t2i": "Text-to-image"}.get(
            column.key[:3] if column.key in RECALLS else "", ""
        )
        last = at + column.split
        if spans and title and spans[-1][0] == title:
            spans[-1] = (title, spans[-1][1], last)
        else:
            spans.append((title, at, last))
        at = last + 1
    if not any(title for title, _, _ in spans):
        return lines
    over = " & ".join(
        rf"\multicolumn{{{b - a + 1}}}{{c}}{{{title}}}" if title else "& " * (b - a) for title, a, b in spans
    )
    rules = "".join(rf"\cmidrule(lr){{{a}-{b}}}" for title, a, b in spans if title)
    return [over + r" \\", rules, *lines]


def _head(column: _Column) -> str:
    if column.split:
        return rf"\multicolumn{{2}}{{c}}{{{escape(column.head)}}}"
    stack = r" \\ ".join(map(escape, column.heads))
    return rf"\shortstack[r]{{{stack}}}" if column.stacked else stack


def _heading(block: Block, columns: Sequence[_Column]) -> str:
    """The line above the rows of a dataset and backbone."""
    _, size, words = _fit(columns)
    text = f"{options.dataset(block.dataset)}, {block.backbone}"
    inside = sum((words if words and c.words else c.width(_SIZES[size])) + 2 * _SEP for c in columns) - 2 * _SEP
    kind = "@{}l" if width(text, _SIZES[size]) < 0.8 * inside else f"@{{}}p{{{0.9 * inside:.0f}pt}}@{{}}"
    count = sum(1 + column.split for column in columns)
    return rf"\multicolumn{{{count}}}{{{kind}}}{{\textit{{{escape(text)}}}}} \\"


def _caption(blocks: Sequence[Block], spread: bool) -> str:
    names = dict.fromkeys(options.dataset(block.dataset) for block in blocks)
    backbones = dict.fromkeys(block.backbone for block in blocks)
    where = f"{', '.join(names)} ({', '.join(backbones)})"
    over = ", mean ± sample standard deviation over seeds" if spread else ""
    leaders = any(cell.best for block in blocks for line in block.lines for cell in line.recalls)
    best = " Best in bold, second best underlined." if leaders else ""
    return f"Image-text retrieval on {where}: test recall in percent{over}; mR is the mean of the six.{best}"


_IN_FLOAT = ("Training", "Choice", "Recipe", "Seeds", "Weights", "Rows", "Ranking")


def _notes(blocks: Sequence[Block]) -> Iterator[str]:
    """What stands below a table: the marks, and of one block what its rows have in common. table_notes.tex has more."""
    used = {mark for block in blocks for mark in block.marks}
    marks = [f"{mark} {meaning}" for mark, meaning in MEANINGS.items() if mark in used]
    if marks:
        yield "; ".join(marks) + "."
    for block in blocks:
        names = _IN_FLOAT if len(blocks) == 1 else ("Rows",)
        facts = [f"{name}: {_titled(text, block)}." for name, text in block.facts if name in names]
        if facts:
            yield (f"{options.dataset(block.dataset)}, {block.backbone}. " if len(blocks) > 1 else "") + " ".join(facts)


def notes(runs: Runs, parts: Sequence[Block]) -> str:
    """table_notes.tex: for each block, as text, all that the report says of its numbers, and the published ones."""
    out = [f"% {_comment(runs.sweep)}: written by python -m bench.report.", HEAD]
    for block in parts:
        texts = [f"{name}: {_titled(text, block)}." for name, text in block.facts]
        texts += [f"{DEPARTS} {_titled(text, block)}." for text in block.departures]
        texts += [f"{PUBLISHED}: {_titled('; '.join(block.published), block)}."] if block.published else []
        title = escape(f"{options.dataset(block.dataset)}, {block.backbone}")
        out += [rf"\paragraph{{{title}}}", rf"{{\small\emergencystretch=3em {escape(' '.join(texts))}\par}}"]
    return "\n".join(out) + "\n"


def _titled(text: str, block: Block) -> str:
    """The text with methods' names and settings as papers write them."""
    text, titles = options.config(text), block.titles
    names = "|".join(map(re.escape, sorted(titles, key=len, reverse=True)))
    return (
        re.sub(rf"(?<![\w.=-])({names})(?= \d| \(|[,;:.]|$)", lambda found: titles[found[1]], text) if names else text
    )


# --- text -------------------------------------------------------------------------------------------------------------

_TEX = {
    **{SHORT: r"$^\dagger$", OUTSIDE: r"$^\ddagger$", CHOSEN: r"$^\diamond$", DEPARTS: r"$^\S$"},
    **{significance.TIED: r"$^\approx$", contamination.SEEN: r"$^\P$", origin.DIFFERS: r"$^\|$"},
    **{"♯": r"$^\sharp$", "♭": r"$^\flat$", "∗": r"$^\ast$"},
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': "''"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"[": "{[}", "]": "{]}"},  # after a row's \\ a bracket would be read as its argument
    **{DASH: "--", "—": "---", "…": r"\ldots{}", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$"},
    **{"−": "$-$", "²": "$^2$"},
    **{"’": "'", "‘": "`", "“": "``", "”": "''", "≥": r"$\geq$", "µ": r"$\mu$", "°": r"$^\circ$"},
    **{"ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ł": r"\l{}", "Ł": r"\L{}"},
    **{"ı": r"\i{}", "œ": r"\oe{}", "Œ": r"\OE{}"},
    **{"α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\epsilon$", "λ": r"$\lambda$"},
    **{"μ": r"$\mu$", "π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$", "ω": r"$\omega$"},
}  # fmt: skip
_ACCENTS = {
    **{"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": "."},
    **{"\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c", "\u0328": "k"},
}
_BREAK = r"\hspace{0pt}"


def escape(text: str) -> str:
    """Plain text as LaTeX that prints it, in ASCII; long words may break."""
    return " ".join(map(_word, _clean(text).split()))


def _word(word: str) -> str:
    out, since = [], 0
    for char in word:
        text = _TEX.get(char) or _letter(char)
        out.append(text)
        since += 1
        if text.startswith("\\petlchar") or (len(word) > 12 and (since >= 8 or char in "_/=,.;:-")):
            out.append(_BREAK)
            since = 0
    return "".join(out)


def _letter(char: str) -> str:
    if char.isascii():
        return char
    base, *accents = list(unicodedata.normalize("NFD", char))
    if base.isascii() and len(accents) == 1 and accents[0] in _ACCENTS and accents[0] != "\u0328":
        base = {"i": r"\i{}", "j": r"\j{}"}.get(base, base) if accents[0] not in "\u0327" else base
        return rf"\{_ACCENTS[accents[0]]}{{{base}}}"
    return rf"\petlchar{{{ord(char):X}}}"


def _clean(text: str) -> str:
    """One line, composed letters, without characters that print nothing."""
    plain = unicodedata.normalize("NFC", " ".join(str(text).split()))
    return "".join(char for char in plain if char == " " or (unicodedata.category(char)[0] != "C" and char != "\ufe0f"))


def _comment(text: str) -> str:
    return _clean(text).encode("ascii", "replace").decode()


def width(text: str, size: float) -> float:
    """About how wide a text is in Computer Modern, in points; rather more than less."""
    return 1.04 * size * sum(_em(char) for char in text)


def _em(char: str) -> float:
    if char in "ijl.,:;'!|()[]":
        return 0.37
    if char in "mwMW±×≈◆%@&":
        return 0.9
    if not char.isascii():
        return 0.75 if char in _TEX or _letter(char)[:9] != r"\petlchar" else 2.6
    return 0.78 if char.isupper() else 0.56

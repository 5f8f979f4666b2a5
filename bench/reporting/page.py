"""The report as one page that needs no network. No torch."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vl_convert
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from bench.config.document import Dumper
from bench.reporting import curves, figures, gallery, pagedata, published, spending, summary, tables
from bench.reporting.further import Section
from bench.store.frame import Runs

STATIC_ROWS = 100  # of a block's table that browsers without scripts show
THUMBNAIL_BYTES = 4_000_000  # of all pictures in the gallery
_HERE = Path(__file__).parent
_WEB = _HERE / "web"
_SCRIPTS = ("page.js", "charts.js", "gallery.js")  # in this order, behind the libraries
_MODES = {"light": False, "dark": True}
_LICENCE = """/*! Vega {}, Vega-Lite {}, Vega-Embed {} and their dependencies, bundled by vl-convert.
Their copyright notices and licences are at the end of this page, under "Licences"; keep them with this code. */
"""


def page(
    runs: Runs,
    parts: Sequence[tables.Block],
    charts: Sequence[curves.Chart] = (),
    more: Sequence[Section] = (),
    live: int | None = None,
) -> str:
    """index.html: what was measured, the figures (light and dark), the tables, what is missing, where it came from.

    `live`: the page loads itself again after so many seconds.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found = pagedata.rows(runs, parts)
    data = {
        "table": pagedata.table(runs, parts),
        "curves": pagedata.curves(found),
        "galleries": gallery.galleries(found, THUMBNAIL_BYTES),
        "live": live,
    }
    scripts = [_libraries(), *((_WEB / name).read_text(encoding="utf-8") for name in _SCRIPTS)]
    return environment.get_template("page.html.j2").render(
        runs=runs,
        parts=parts,
        live=live,
        policy=_policy(scripts),
        style=Markup((_WEB / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        data=_json(data),
        header=list(tables.HEADER),
        params=tables.params,
        figures={mode: _svg(figures.recall_vs_params(parts, dark)) for mode, dark in _MODES.items()},
        charts=[(chart, {mode: _svg(curves.draw(chart, dark)) for mode, dark in _MODES.items()}) for chart in charts],
        more=[
            (each, each.figure and {mode: _svg(each.figure(dark)) for mode, dark in _MODES.items()}) for each in more
        ],
        static_rows=STATIC_ROWS,
        outside=int((~runs.finished["planned"]).sum()),
        short=summary.SHORT,
        meanings=summary.MEANINGS,
        unfinished=len(runs.unfinished),
        failures=pagedata.failures(runs),
        costs=spending.costs(runs),
        dirty=any(origin.get("git_dirty") for origin in runs.finished["provenance"]),
        provenance=list(_provenance(runs)),
        published={part.dataset: published.of_dataset(part.dataset) for part in parts},
        commands=list(_commands(runs)),
        sweep_file=_sweep_file(runs),
        licences=(_WEB / "licences.txt").read_text(encoding="utf-8"),
    )


def _libraries() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script with their notice; the same bytes for the same vl-convert."""
    notice = _LICENCE.format(
        vl_convert.get_vega_version(), vl_convert.get_vegalite_versions()[-1], vl_convert.get_vega_embed_version()
    )
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    code = bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return f"\n{notice}{code}\n"


def _policy(scripts: Sequence[str]) -> str:
    """The page's Content-Security-Policy: no request at all, and no script but these.

    Vega compiles its own expressions, which takes 'unsafe-eval'; no text of the data is in an expression.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes} 'unsafe-eval'; img-src data:"


def _json(data: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _svg(figure: Figure) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(figures.save(figure, 'svg')).decode()}"


@dataclass(frozen=True)
class _Origin:
    """One fact of the finished runs' origin: its values, each with the number of runs, and whether to warn of it."""

    name: str
    values: list[tuple[str, int]]
    warning: bool = False


def _provenance(runs: Runs) -> Iterator[_Origin]:
    """All that is known of the finished runs' origin."""
    frame = runs.finished

    def values(origin: Sequence[Any], key: str) -> list[tuple[str, int]]:
        found = Counter(str(p[key]) for p in origin if p.get(key) is not None)
        return found.most_common() or [(tables.DASH, len(origin))]

    everything = list(frame["provenance"])
    yield _Origin("Commit", values(everything, "git_commit"))
    dirty = Counter({True: "yes", False: "no"}.get(p.get("git_dirty"), "unknown") for p in everything)
    yield _Origin("Uncommitted changes", dirty.most_common(), warning="yes" in dirty)
    for name, key in (("Device", "device"), ("Devices", "device_count"), ("CPU threads", "threads")):
        yield _Origin(name, values(everything, key))
    for name, key in (("Host", "hostname"), ("Platform", "platform"), ("Python", "python")):
        yield _Origin(name, values(everything, key))
    for dataset, rows in frame.groupby("dataset", sort=False):
        yield _Origin(f"Data of {dataset} (sha256)", values(list(rows["provenance"]), "dataset_sha256"))
    for backbone, rows in frame.groupby("backbone", sort=False):
        yield _Origin(f"Weights of {backbone} (sha256)", values(list(rows["provenance"]), "weights_sha256"))
    yield _Origin("Lock file (sha256)", values(everything, "lock_sha256"))
    differing = Counter(each for p in everything for each in p.get("lock_differs") or ())
    if differing:
        yield _Origin("Packages in other versions than the lock's", differing.most_common(), warning=True)
    packages = [p["packages"] for p in everything if isinstance(p.get("packages"), dict)]
    for package in sorted({name for found in packages for name in found}):
        yield _Origin(package, values(packages, package))


def _sweep_file(runs: Runs) -> str:
    """The sweep file with all overrides as YAML; empty where the plan has none."""
    return yaml.dump(runs.content, Dumper=Dumper, sort_keys=False, allow_unicode=True) if runs.content else ""


def _commands(runs: Runs) -> Iterator[tuple[str, str]]:
    if runs.command:
        yield "The whole sweep (finished runs are skipped)", runs.command
    for run in runs.frame[:1].to_dict("records"):
        example = shlex.quote((Path(run["folder"]) / run["run_id"]).as_posix())
        yield "One run anew, and what differs", f"python -m bench.run --again {example}"
    folders = " ".join(shlex.quote(folder.as_posix()) for folder in runs.folders or (runs.folder,))
    yield "This report", f"python -m bench.report {folders}"

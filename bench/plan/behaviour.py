"""The section `behaviour` of a sweep file: what is measured of every model beside its recall. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bench.config.document import Document, Key, show
from bench.config.errors import UserError
from bench.config.parse import parse
from bench.config.settings import AnyDataset, BehaviourSettings
from bench.data import DATASETS
from bench.plan.axes import Choice, values

LISTS = ("evaluate", "forgetting")  # the settings that hold datasets


def read(document: Document, written: Any, resolve: Callable[[Document, Choice, Key], AnyDataset]) -> BehaviourSettings:
    """The settings, with every dataset found; `resolve` makes a dataset's settings, as for the section `dataset`.

    UserError for a mistake, with its place.
    """
    plain = {key: value for key, value in written.items() if key not in LISTS} if isinstance(written, dict) else written
    found = parse(BehaviourSettings, plain, "behaviour", document, ("behaviour",))
    datasets = {key: _datasets(document, ("behaviour", key), written[key], resolve) for key in LISTS if key in written}
    return found.model_copy(update=datasets)


def _datasets(
    document: Document, path: Key, written: Any, resolve: Callable[[Document, Choice, Key], AnyDataset]
) -> tuple[AnyDataset, ...]:
    """The datasets of one list, or the one that is written without a list."""
    if written is None or written == []:
        return ()
    listed, found = isinstance(written, list), []
    for index, (item, place) in enumerate(values(document, path, written)):
        settings = _named(item) if isinstance(item, str) else item
        if not isinstance(settings, Mapping):
            key = ".".join(map(str, path))
            raise UserError(f"{place}: {key}: expected a dataset's name or settings 'name: ...', got {show(item)}")
        inside: Key = (*path, index) if listed else path
        places = {key: document.at((*inside, key)) if isinstance(item, Mapping) else place for key in settings}
        found.append(resolve(document, Choice(dict(settings), places | {"name": places.get("name", place)}), inside))
    names = [each.called for each in found]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{document.at(path)}: {'.'.join(map(str, path))}: two datasets are called {show(double)}")
    return tuple(found)


def _named(name: str) -> dict[str, Any]:
    """The settings of a dataset given by its name: a known one lies where its environment variable says."""
    made = name in DATASETS and DATASETS[name].make is not None
    known = name in DATASETS and not made
    return {"name": name, "root": f"${name.upper()}_ROOT"} if known else {"name": name}

"""``zfast store import`` and ``export``: results between a store and Prefect's stock format."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from zfast.cli.path_options import GivenPath
from zfast.cli.store_options import (
    FOUND,
    Basepath,
    Switch,
    basepath_of,
    open_store,
    print_json,
    show_progress,
)
from zfast.errors import ConfigError

if TYPE_CHECKING:
    from zfast.prefect.results_transfer import Transfer


def import_(
    source: GivenPath,
    /,
    *,
    basepath: Basepath = None,
    as_is: Switch = False,
    trust_pickles: Switch = False,
    overwrite: Switch = False,
    json: Switch = False,
) -> int:
    """Move in results that Prefect's own storage wrote to a folder; the folder stays as it is.

    Converting a result decodes it, and decoding a pickle runs code that its writer chose. Files
    that another user may have written are refused unless you trust them.

    Parameters
    ----------
    source
        The folder, e.g. ~/.prefect/storage.
    basepath
        The store's folder.  [default: zfast-results in Prefect's home]
    as_is
        Decode nothing and keep each record as it is; it is read no faster than before.
    trust_pickles
        Decode files that another user may have written, too.
    overwrite
        Write over objects that are there.
    json
        Print JSON to standard output.
    """
    _need_prefect()
    from zfast.prefect.results_transfer import import_results
    from zfast.store.folder import FolderStore

    store = FolderStore(str(basepath_of(basepath)))
    with show_progress("import") as step:
        done = import_results(
            source,
            store,
            trust=trust_pickles,
            as_is=as_is,
            overwrite=overwrite,
            on_result=step,
        )
    return _report(done, json)


def export(
    target: GivenPath,
    /,
    *,
    basepath: Basepath = None,
    trust_pickles: Switch = False,
    overwrite: Switch = False,
    json: Switch = False,
) -> int:
    """Write the results to a folder as Prefect's own storage would; the store stays as it is.

    Converting a result decodes it, and decoding runs code that its writer chose. Objects that
    another user may have written are refused unless you trust them.

    Parameters
    ----------
    target
        The folder; it is made if it is not there.
    basepath
        The store's folder.  [default: zfast-results in Prefect's home]
    trust_pickles
        Decode objects that another user may have written, too.
    overwrite
        Write over files that are there.
    json
        Print JSON to standard output.
    """
    _need_prefect()
    from zfast.prefect.results_transfer import export_results

    store = open_store(basepath)
    with show_progress("export", store) as step:
        done = export_results(
            store, target, trust=trust_pickles, overwrite=overwrite, on_result=step
        )
    return _report(done, json)


def _need_prefect() -> None:
    if importlib.util.find_spec("prefect") is None:
        raise ConfigError("to move results needs Prefect", hint="pip install 'zfast[prefect]'")


def _report(done: Transfer, json: bool) -> int:
    if json:
        print_json(
            {
                "n_converted": done.n_converted,
                "n_copied": done.n_copied,
                "skipped": done.skipped,
                "failed": [{"key": key, "error": str(error)} for key, error in done.failures],
            }
        )
    else:
        for key, error in done.failures:
            print(f"not moved: {key}: {error}")
        print(
            f"{done.n_converted} results converted, {done.n_copied} copied as they are, "
            f"{len(done.skipped)} skipped that are there already, {len(done.failures)} not moved"
        )
    return FOUND if done.failures else 0

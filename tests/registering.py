"""Users' classes in the tables for the time of a test: the other tests see ours alone."""

from contextlib import contextmanager

from hf_vq.registry import NAMED_BY, TABLES, register


@contextmanager
def tables_as_they_were():
    """Takes out of the tables what is registered meanwhile."""
    before = {kind: dict(table) for kind, table in TABLES.items()}
    try:
        yield
    finally:
        for kind, table in TABLES.items():
            table.clear()
            table.update(before[kind])


def register_for_now(monkeypatch, *everything):
    """Registers classes or modalities as a user does; monkeypatch takes them out again."""
    for found in everything:
        name = getattr(found, NAMED_BY.get(found.registry_kind, "__name__"))
        monkeypatch.setitem(TABLES[found.registry_kind], name, found)
        register(found)

"""How tables become dataclasses, each of whose fields declares a setting; every fault is told with its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from gateway.config import values


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with the configuration or with what it points at."""

    path: str
    """Dotted path of the setting, e.g. `policies.caller.rate`."""
    message: str
    """What is wrong and what would be right; never the value of a secret."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ConfigError(Exception):
    """Every fault of a configuration at once."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


def setting(doc: str, read: Callable[[Any], Any], default: Any = MISSING) -> Any:
    """Declare one setting: what it means, how it is read, and what absence means."""
    metadata = {"doc": doc, "read": read}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def tables_of(shape: type[Any], name: Callable[[Any], str] = values.name) -> Any:
    """Declare tables of one shape, each under a name of the operator's choice; none where they are left out."""
    return field(default_factory=dict, metadata={"tables": shape, "name": name})


def read_table(shape: type[Any], table: Any, path: str, faults: list[Fault]) -> Any:
    """Return one table as its dataclass; None when something in it was wrong, told in `faults`. `path`: with its dot."""
    if not isinstance(table, Mapping):
        faults.append(Fault(path.rstrip("."), "must be a table"))
        return None
    known = {declared.name: declared for declared in fields(shape)}
    faults.extend(
        Fault(f"{path}{name}", f"is not a setting; the settings here are {', '.join(known)}")
        for name in table
        if name not in known
    )
    before = len(faults)
    types = get_type_hints(shape)
    read = {name: _read_one(declared, types[name], table, path, faults) for name, declared in known.items()}
    return None if len(faults) > before else shape(**{name: item for name, item in read.items() if item is not MISSING})


def read_tables(shape: type[Any], named: Callable[[Any], str], tables: Any, path: str, faults: list[Fault]) -> Any:
    """Return tables of one shape, each under its own name; MISSING where they are none, told in `faults`."""
    if not isinstance(tables, Mapping):
        faults.append(Fault(path, f"must be tables like [{path}.NAME]"))
        return MISSING
    read = {}
    for name, table in tables.items():
        try:
            read[named(name)] = read_table(shape, table, f"{path}.{name}.", faults)
        except values.Wrong as wrong:
            faults.append(Fault(f"{path}.{name}", f"the table's name {wrong}"))
    return read


def documented(shape: type[Any], path: str = "") -> list[tuple[str, str, Any]]:
    """Return every setting as (path, meaning, default); MISSING as default means required."""
    rows: list[tuple[str, str, Any]] = []
    types = get_type_hints(shape)
    for declared in fields(shape):
        kind = types[declared.name]
        if "tables" in declared.metadata:
            rows.extend(documented(declared.metadata["tables"], f"{path}{declared.name}.NAME."))
        elif _is_table(declared, kind):
            rows.extend(documented(kind, f"{path}{declared.name}."))
        else:
            rows.append((f"{path}{declared.name}", declared.metadata["doc"], declared.default))
    return rows


def _read_one(declared: Field[Any], kind: Any, table: Mapping[str, Any], path: str, faults: list[Fault]) -> Any:
    """Return one setting of a table; MISSING where its default stands or a fault was told."""
    here, told = f"{path}{declared.name}", declared.metadata
    required = declared.default is MISSING and declared.default_factory is MISSING
    if "tables" in told:
        return read_tables(told["tables"], told["name"], table.get(declared.name, {}), here, faults)
    if _is_table(declared, kind):
        if declared.name in table or required:
            return read_table(kind, table.get(declared.name, {}), f"{here}.", faults)
        return MISSING
    if declared.name not in table:
        if required:
            faults.append(Fault(here, f"is missing; it is the {told['doc']}"))
        return MISSING
    try:
        return told["read"](table[declared.name])
    except values.Wrong as wrong:
        faults.append(Fault(here, str(wrong)))
    except ValueError:  # Of an address that cannot be taken apart; its text may hold a password.
        faults.append(Fault(here, "is no address; write it like scheme://host:port"))
    return MISSING


def _is_table(declared: Field[Any], kind: Any) -> bool:
    """Say whether it is a table of settings, and no setting whose value is a dataclass."""
    return is_dataclass(kind) and "read" not in declared.metadata

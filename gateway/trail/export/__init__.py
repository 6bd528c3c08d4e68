"""Records as other programs read them: as they were recorded, as a table, and as events of OCSF and of ECS.

All are lines. Whoever could write to Redis may have written what is exported, so nothing here trusts a record: its line
stays one line, of its format, whatever it holds, and all it holds is in the line. A value that the schema has no place
for, or of a type that the gateway never records, is kept apart under `unmapped` (OCSF) or `masking_gateway` (ECS).
A pseudonym is called one: it is a keyed hash, and no telephone number can be had from it.
"""

from gateway.trail.export.formats import FORMATS, Format, written
from gateway.trail.export.reading import NotExportable

__all__ = ["FORMATS", "Format", "NotExportable", "written"]

"""Typed settings, parsed from mappings; nothing here opens a file or reads the environment.

`parse` returns `Settings`, or raises one `ConfigError` that lists every fault with its path and what would be right.
Secrets are not in the document, only references to them; `vault` resolves those.
"""

from gateway.config.parsing import parse
from gateway.config.policies import (
    AT_ONCE,
    BUILT_IN,
    Policy,
    Terms,
    filled_up,
    read_policies,
    read_terms,
    subject_fault,
    terms_faults,
)
from gateway.config.sections import (
    Account,
    Audit,
    Console,
    Credential,
    Idempotency,
    Issuer,
    Keys,
    Log,
    Oidc,
    Redis,
    Server,
    Settings,
    Tracing,
    Upstream,
    Validation,
    Workload,
)
from gateway.config.tables import ConfigError, Fault, documented
from gateway.config.values import ALGORITHMS, PREFIX, WORKERS_MAX, Rate, SecretReference, is_confidential

__all__ = [
    "ALGORITHMS",
    "AT_ONCE",
    "BUILT_IN",
    "PREFIX",
    "WORKERS_MAX",
    "Account",
    "Audit",
    "ConfigError",
    "Console",
    "Credential",
    "Fault",
    "Idempotency",
    "Issuer",
    "Keys",
    "Log",
    "Oidc",
    "Policy",
    "Rate",
    "Redis",
    "SecretReference",
    "Server",
    "Settings",
    "Terms",
    "Tracing",
    "Upstream",
    "Validation",
    "Workload",
    "documented",
    "filled_up",
    "is_confidential",
    "parse",
    "read_policies",
    "read_terms",
    "subject_fault",
    "terms_faults",
]

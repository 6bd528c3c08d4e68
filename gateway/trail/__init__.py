"""Reading the audit trail: what reviewers do with it. Never imported by the pipeline."""

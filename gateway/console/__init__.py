"""The console: pages for operators and auditors, in a process of its own that holds no credential of the vendor."""

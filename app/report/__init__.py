"""The page of a job: sections, tables, and plots drawn by matplotlib in a process of its own, which this package is too
(`python -m app.report`). The serving process imports `press` alone."""

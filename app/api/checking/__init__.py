"""What can be seen of a job before it is queued, kind by kind: refused where it cannot work, else warned of."""

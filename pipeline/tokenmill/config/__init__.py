"""Parts of a job file that tasks and engines know too; no I/O."""

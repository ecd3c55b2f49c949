"""Taking records out of everything: topics, tables, search, files, snapshots."""

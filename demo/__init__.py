"""A guest writes, a transaction of backups runs, then a stream: and every image is judged at the end."""

"""`backupd run`: keeps the promises of the configuration without anyone watching."""

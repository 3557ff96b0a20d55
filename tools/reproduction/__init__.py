"""The paper's tables as data, what a row needs as commands, and finished runs as table rows."""

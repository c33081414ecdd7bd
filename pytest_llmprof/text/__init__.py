"""Text for people: numbers, Markdown, escaping, file names. Imports nothing but the standard library."""

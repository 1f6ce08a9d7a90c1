"""Tables of text, for outputs and for pages."""


class Table:
    """Rows of text under a heading each, shown as a table."""

    def __init__(self, headings, rows):
        self.rows = [tuple(headings), *map(tuple, rows)]

    def _repr_markdown_(self):
        return self.markdown()

    def markdown(self):
        """The table in Markdown."""
        lines = [f"| {' | '.join(row)} |" for row in self.rows]
        lines.insert(1, "|---" * len(self.rows[0]) + "|")
        return "\n".join(lines)

    def __repr__(self):
        return "\n".join("  ".join(row) for row in self.rows)

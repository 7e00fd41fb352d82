"""How values show themselves: in one line, as a table, as a figure, and while they come about."""

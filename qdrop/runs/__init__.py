"""What finished runs left behind: their table, and the page of experiments made from it."""

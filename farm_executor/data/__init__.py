"""Values as bytes: calls, results and exceptions, and what they are made of."""

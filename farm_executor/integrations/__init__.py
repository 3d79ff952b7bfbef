"""What makes a farm the backend of other libraries. Nothing else of the package imports any of these."""

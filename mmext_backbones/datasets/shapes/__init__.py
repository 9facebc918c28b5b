"""The synthetic Shapes data: scenes drawn here, their files, and any config rewritten to use them."""

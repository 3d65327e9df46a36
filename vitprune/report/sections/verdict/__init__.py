"""What came out: the verdict, dense beside slim, all groups."""

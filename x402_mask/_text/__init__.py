"""What people and agents read: values, errors and settings in our words, all of it printable."""

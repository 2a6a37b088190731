"""What is private, and how: accounting, central differential privacy, and more in rooms of their own."""

"""What is measured: models' shapes, mixes of types, contenders, and the memory that all contenders of a case share."""

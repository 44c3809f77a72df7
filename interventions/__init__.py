"""One method a file; the folders are the families. Methods import what they need from zslx itself."""

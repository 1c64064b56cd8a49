"""The file format .gsi: encoding and decoding without torch."""

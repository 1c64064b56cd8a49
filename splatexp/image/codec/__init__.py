"""The file format .gsi (docs/gsi.md): reading, writing, decoding and describing files; needs no torch."""

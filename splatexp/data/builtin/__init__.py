"""The built-in scene: a still life that is ray traced from code."""

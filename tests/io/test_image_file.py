"""Pictures from files: every kind that is read is read to the bit, and every other is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from splatexp.io import image_file, png16

RNG = np.random.default_rng(0)


def values(channels: int, bits: int, height: int = 13, width: int = 9) -> np.ndarray:
    """Random integers [H,W,channels], some of them extreme."""
    top = (1 << bits) - 1
    drawn = RNG.integers(0, top + 1, (height, width, channels))
    drawn[0, 0], drawn[0, 1] = 0, top
    return drawn.astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (13, 9), (3, 70)])
def test_png_keeps_every_bit(tmp_path, channels, bits, size):
    given = values(channels, bits, *size) if size != (1, 1) else values(channels, bits)[:1, :1]
    image_file.write_image(tmp_path / "a.png", given, bits)
    picture = image_file.read_image(tmp_path / "a.png")
    assert (picture.bits, picture.channels, picture.name) == (bits, channels, "a.png")
    assert (picture.height, picture.width) == size
    assert picture.pixels.dtype == np.float32 and picture.pixels.flags["C_CONTIGUOUS"]
    assert np.array_equal(picture.integers(), given)


@pytest.mark.parametrize("kind", range(5))
def test_16_bit_lines_of_every_filter(kind):
    """A file is made line by line with one filter, and read back; so an encoder's choice hides nothing."""
    given = values(3, 16)
    now = given.astype(">u2").view(np.uint8).reshape(len(given), -1).astype(int)
    left, up, corner = (png16._shifted(now, *by) for by in ((0, 6), (1, 0), (1, 6)))
    guess = [0 * now, left, up, (left + up) // 2, png16._paeth(left, up, corner)][kind]
    lines = b"".join(bytes([kind]) + line.astype(np.uint8).tobytes() for line in now - guess)
    header = struct.pack(">IIBBBBB", 9, 13, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"tEXt", b"a\0b"), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    data = png16.SIGNATURE + b"".join(png16._chunk(*part) for part in parts)
    assert np.array_equal(png16.decode(data), given)
    with Image.open(io.BytesIO(data)) as other:  # Pillow agrees on the upper halves
        assert np.array_equal(np.asarray(other), given >> 8)


def test_16_bits_interlaced_and_a_transparent_colour():
    given = values(3, 16)
    lines = b""
    for col, row, right, down in png16.PASSES:
        for line in given[row::down, col::right].astype(">u2"):
            lines += b"\0" * bool(line.size) + line.tobytes()
    header = struct.pack(">IIBBBBB", 9, 13, 16, 2, 0, 0, 1)
    clear = given[4, 5].astype(">u2").tobytes()
    parts = ((b"IHDR", header), (b"tRNS", clear), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    found = png16.decode(png16.SIGNATURE + b"".join(png16._chunk(*part) for part in parts))
    assert np.array_equal(found[..., :3], given)
    assert found[4, 5, 3] == 0 and (found[..., 3] == 65535).sum() == 13 * 9 - 1


def test_a_16_bit_png_that_is_broken_or_cut_off(tmp_path):
    data = png16.encode(values(3, 16))
    for wrong in (data[:40], data[:-20], data[:60] + bytes([data[60] ^ 255]) + data[61:], data[:100]):
        (tmp_path / "a.png").write_bytes(wrong)
        with pytest.raises(ValueError, match="a.png: cannot read the image"):
            image_file.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "tif", "jpg"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation(tmp_path, turn, kind):
    exif = Image.Exif()
    exif[image_file.ORIENTATION] = turn
    Image.fromarray(np.kron(values(3, 8), np.ones((8, 8, 1), np.uint8))).save(
        tmp_path / f"a.{kind}", exif=exif
    )
    with Image.open(tmp_path / f"a.{kind}") as file:
        wanted = np.asarray(ImageOps.exif_transpose(file))
    assert np.array_equal(image_file.read_image(tmp_path / f"a.{kind}").integers(), wanted)


def test_orientation_at_16_bits(tmp_path):
    given, exif = values(3, 16), Image.Exif()
    exif[image_file.ORIENTATION] = 6
    data = png16.encode(given)
    at = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + png16._chunk(b"eXIf", exif.tobytes()[6:]) + data[at:])
    assert np.array_equal(image_file.read_image(tmp_path / "a.png").integers(), np.rot90(given, -1))


@pytest.mark.parametrize("mode, channels", [("1", 1), ("P", 3), ("L", 1), ("LA", 2), ("RGBA", 4), ("PA", 4)])
def test_modes(tmp_path, mode, channels):
    image = Image.fromarray(values(4, 8)).convert("RGBA" if mode in ("LA", "RGBA", "PA") else "RGB")
    image = image.convert(mode)
    name = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    image.save(name)
    found = image_file.read_image(name)
    if mode == "PA":  # there is no file that keeps it
        assert found.channels in (2, 4)
        return
    wanted = np.asarray(image.convert({"1": "L", "P": "RGB"}.get(mode, mode)))
    assert found.channels == channels
    assert np.array_equal(found.integers().squeeze(), wanted)


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.fromarray(values(3, 8)).convert("P")
    image.save(tmp_path / "a.png", transparency=int(np.asarray(image)[3, 3]))
    found = image_file.read_image(tmp_path / "a.png").integers()
    assert found.shape == (13, 9, 4) and found[3, 3, 3] == 0 and found[..., 3].max() == 255


def test_grey_of_16_bits_from_tiff_and_pgm(tmp_path):
    given = values(1, 16)[..., 0]
    Image.fromarray(given).save(tmp_path / "a.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 9 13 65535 " + given.astype(">u2").tobytes())
    for name in ("a.tif", "a.pgm"):
        found = image_file.read_image(tmp_path / name)
        assert found.bits == 16 and np.array_equal(found.integers()[..., 0], given)


def wide_profile() -> bytes:
    """A profile of RGB whose red and green are exchanged: sRGB's own with two of its tags renamed."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")


@pytest.mark.parametrize("channels", [3, 4])
def test_a_profile_is_converted_to_srgb(tmp_path, channels):
    given = values(channels, 8)
    Image.fromarray(given).save(tmp_path / "a.png", icc_profile=wide_profile())
    found = image_file.read_image(tmp_path / "a.png").integers()
    assert np.abs(found[..., :3].astype(int) - given[..., [1, 0, 2]]).max() <= 1
    assert np.array_equal(found[..., 3:], given[..., 3:])
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(given).save(tmp_path / "b.png", icc_profile=same)
    assert np.array_equal(image_file.read_image(tmp_path / "b.png").integers(), given)  # not a level is lost


def test_what_is_refused_and_why(tmp_path):
    def refused(name: str, why: str) -> None:
        with pytest.raises(ValueError, match=why) as error:
            image_file.read_image(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)

    image = Image.fromarray(values(3, 8))
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    refused("cmyk.jpg", "colour space CMYK")
    image.convert("LAB").save(tmp_path / "lab.tif")
    refused("lab.tif", "colour space LAB")
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "float.tif")
    refused("float.tif", "32 bits")
    image.save(tmp_path / "two.gif", save_all=True, append_images=[image.rotate(90)])
    refused("two.gif", "expected one frame, got 2")
    image.save(tmp_path / "broken.png", icc_profile=b"no profile")
    refused("broken.png", "ICC profile")
    image.save(tmp_path / "of_grey.png", icc_profile=wide_profile()[:16] + b"GRAY" + wide_profile()[20:])
    refused("of_grey.png", "ICC profile cannot be used for RGB")
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 2 65535 " + bytes(24))
    refused("deep.ppm", "read from PNG alone")
    data = png16.encode(values(3, 16))
    at = data.index(b"IDAT") - 4
    packed = b"x\0\0" + zlib.compress(wide_profile())
    (tmp_path / "p16.png").write_bytes(data[:at] + png16._chunk(b"iCCP", packed) + data[at:])
    refused("p16.png", "at 16 bits is not supported")
    (tmp_path / "text.png").write_text("not a picture")
    refused("text.png", "its format is not known")
    image.resize((200, 200)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    refused("cut.jpg", "cannot read the image")
    with pytest.raises(FileNotFoundError, match="no such image"):
        image_file.read_image(tmp_path / "none.png")


def test_writing(tmp_path):
    given = values(4, 8, 32, 32)
    image_file.write_image(tmp_path / "new" / "a.webp", given)
    assert np.array_equal(
        image_file.read_image(tmp_path / "new" / "a.webp").integers()[..., 3], given[..., 3]
    )
    image_file.write_image(tmp_path / "b.png", np.array([[[-1.0], [0.5], [0.501], [2.0]]], np.float32))
    assert image_file.read_image(tmp_path / "b.png").integers().ravel().tolist() == [0, 128, 128, 255]
    before = (tmp_path / "b.png").read_bytes()
    for name, wrong, bits, why in (
        ("a.jpg", given, 8, "RGB, |RGBA cannot be written as .jpg"),
        ("a.gsi", given, 8, "expected an image format"),
        ("a.jpg", values(1, 16), 16, "expected .png for 16 bits"),
        ("b.png", values(1, 16), 8, "8-bit integers, got uint16"),
        ("b.png", given[..., 0], 8, "expected"),
    ):
        with pytest.raises(ValueError, match=why):
            image_file.write_image(tmp_path / name, wrong, bits)
    assert (tmp_path / "b.png").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"new", "b.png"}

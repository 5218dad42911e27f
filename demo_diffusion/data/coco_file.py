"""What a COCO JSON file must hold; the first thing that is wrong is named in one line."""

from collections import Counter
from itertools import chain

from demo_diffusion.checks import LARGEST, is_number, is_whole, shown

MARGIN = 10  # pixels by which a polygon may leave its image; it is clipped then
BITS, MORE, NEGATIVE = 5, 32, 16  # of a character of COCO's compressed run lengths
LONGEST = 65  # bits of one of their numbers


def checked_content(content: object, masks: bool) -> dict:
    """The content of a file, if every entry has what is needed and refers to what is there.

    Args:
        masks: whether each annotation needs a mask.

    Raises:
        ValueError: names the entry that is wrong.
    """
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError("it is no COCO JSON file of detection: it has no list 'images'")
    if not isinstance(content.get("annotations"), list) or not isinstance(content.get("categories"), list):
        raise ValueError("it has no lists 'annotations' and 'categories'; files of images alone cannot be used")
    if not content["categories"]:
        raise ValueError("it has no categories")
    for name, keys in {"images": ("id", "file_name", "width", "height"), "categories": ("id", "name")}.items():
        _check_entries(name, content[name], keys)
    _check_entries("annotations", content["annotations"], ("id", "image_id", "category_id", "bbox"))
    for each in content["images"]:
        _check_text("image", each, "file_name")
        for side in ("width", "height"):
            if not is_whole(each[side]) or not 1 <= each[side] <= LARGEST:
                raise ValueError(
                    f"image {each['id']} has the {side} {shown(each[side])}; it must be a whole number of pixels from "
                    f"1 to {LARGEST}"
                )
    for each in content["categories"]:
        _check_text("category", each, "name")
    names = Counter(each["name"] for each in content["categories"])
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two categories are called {twice[0]!r}")
    sizes = {each["id"]: (each["height"], each["width"]) for each in content["images"]}
    categories = {each["id"] for each in content["categories"]}
    for each in content["annotations"]:
        _check_annotation(each, sizes, categories)
        if masks:
            _check_mask(each, sizes[each["image_id"]])
    return content


def _check_entries(name: str, entries: list, keys: tuple[str, ...]) -> None:
    seen = set()
    for number, each in enumerate(entries):
        if not isinstance(each, dict) or any(key not in each for key in keys):
            raise ValueError(f"entry {number} of {name!r} has not all of {', '.join(keys)}")
        if not is_whole(each["id"]) and not isinstance(each["id"], str):
            raise ValueError(f"entry {number} of {name!r} has the id {shown(each['id'])}; it must be a whole number")
        if each["id"] in seen:
            raise ValueError(f"two entries of {name!r} have the id {each['id']}")
        seen.add(each["id"])
    if len(kinds := {type(number).__name__ for number in seen}) > 1:
        raise ValueError(f"the ids of {name!r} are of the types {', '.join(sorted(kinds))}; they must be of one")


def _check_text(kind: str, entry: dict, key: str) -> None:
    if not isinstance(entry[key], str) or not entry[key]:
        raise ValueError(f"{kind} {entry['id']} has the {key} {shown(entry[key])}; it must be a text")


def _check_annotation(annotation: dict, sizes: dict, categories: set) -> None:
    """Its image, its category, and what it may say of them; boxes are looked at by who may leave them out."""
    number, image, category = (annotation[key] for key in ("id", "image_id", "category_id"))
    if not isinstance(image, (int, str)) or image not in sizes:
        raise ValueError(f"annotation {number} is of image {shown(image)}, which is not listed")
    if not isinstance(category, (int, str)) or category not in categories:
        raise ValueError(f"annotation {number} has the category {shown(category)}; listed are {_range(categories)}")
    if annotation.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"annotation {number} has iscrowd {shown(annotation['iscrowd'])}; it must be 0 or 1")
    if not is_number(annotation.get("area", 0)) or annotation.get("area", 0) < 0:
        raise ValueError(f"annotation {number} has the area {shown(annotation['area'])}; it must be a number of pixels")


def _check_mask(annotation: dict, size: tuple[int, int]) -> None:
    """Raises ValueError unless there are polygons, or run lengths that are an image's."""
    number, mask = annotation["id"], annotation.get("segmentation")
    if not mask:
        raise ValueError(f"annotation {number} has no segmentation; masks are needed here")
    if isinstance(mask, dict):
        return _check_run_lengths(number, mask, size)
    is_list = isinstance(mask, list) and all(isinstance(polygon, list) for polygon in mask)
    if not is_list or any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
        raise ValueError(f"annotation {number} has a polygon that is no list of at least three points x, y")
    if not all(map(is_number, chain.from_iterable(mask))):
        raise ValueError(f"annotation {number} has a polygon of other values than finite numbers")
    for polygon in mask:
        for name, values, side in (("x", polygon[::2], size[1]), ("y", polygon[1::2], size[0])):
            if min(values) < -MARGIN or max(values) > side + MARGIN:
                raise ValueError(
                    f"annotation {number} has a polygon with {name} from {min(values):g} to {max(values):g}, outside "
                    f"its image of {size[1]} × {size[0]} pixels; at most {MARGIN} pixels may lie outside"
                )


def _check_run_lengths(number: object, mask: dict, size: tuple[int, int]) -> None:
    if mask.get("size") != list(size):
        raise ValueError(
            f"annotation {number} has a mask of {shown(mask.get('size'))} for an image of {list(size)} (height, width)"
        )
    counts = mask.get("counts")
    if isinstance(counts, str):
        counts = run_lengths(counts)
    if not isinstance(counts, list) or not all(is_whole(count) and count >= 0 for count in counts):
        raise ValueError(f"annotation {number} has a mask whose counts are no run lengths")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"annotation {number} has a mask of {sum(counts)} pixels in all; its image has {size[0] * size[1]}"
        )


def run_lengths(text: str) -> list[int] | None:
    """The numbers in COCO's compressed run lengths; None if the text is cut off or has other characters.

    A character holds 5 bits, the lowest first, and a sixth that says whether more follow. From the fourth number on it
    is the difference to the one before the last.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 2 * MORE:
            return None
        value |= (bits & (MORE - 1)) << shift
        shift += BITS
        if shift > LONGEST:
            return None
        if bits & MORE:
            continue
        value -= (1 << shift) if bits & NEGATIVE else 0
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    return counts if shift == 0 else None


def _range(ids: set) -> str:
    ids = sorted(ids)
    return ", ".join(map(str, ids)) if len(ids) <= 5 else f"{len(ids)} from {ids[0]} to {ids[-1]}"

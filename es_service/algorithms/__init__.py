"""Update rules, one file each, over the small interface of `base`."""

"""Which category of a data set each label of a model stands for."""

from collections.abc import Sequence

from jaxdet.data.records import Category


def match_categories(
    num_classes: int, of_source: Sequence[Category], of_model: Sequence[Category] | None = None
) -> tuple[int, ...]:
    """The source's category id for each label 0..K-1 of a model.

    Args:
        num_classes: K of the model.
        of_source: the data's categories, sorted by id.
        of_model: those that the model was trained on, which the data may number otherwise: they are found by name.
            None: the source's own.

    Raises:
        ValueError: another number of classes, or others than the model's.
    """
    of_model = of_source if of_model is None else of_model
    if num_classes != len(of_model):
        raise ValueError(f"categories: expected {num_classes} (the model's num_classes), got {_listed(of_model)}")
    # Same names in the same order: ids may still differ, and those of the data are what results need.
    if [category.name for category in of_model] == [category.name for category in of_source]:
        return tuple(category.id for category in of_source)
    ids = {category.name: category.id for category in of_source}
    names = {category.name for category in of_model}
    # The lengths tell names that occur twice, which a set would hide.
    if names != set(ids) or not len(names) == len(of_source) == len(of_model):
        raise ValueError(
            "categories: expected the data to have the classes that the model was trained on, by name; "
            f"only in the data: {sorted(set(ids) - names)}, only in the model: {sorted(names - set(ids))}"
        )
    return tuple(ids[category.name] for category in of_model)


def numbered(count: int) -> tuple[Category, ...]:
    """Categories for weights that do not say what their labels stand for."""
    return tuple(Category(i + 1, f"class {i + 1}") for i in range(count))


def _listed(categories: Sequence[Category]) -> str:
    names = [category.name for category in categories[:5]]
    return f"{len(categories)}: {', '.join(names)}{', ...' if len(categories) > 5 else ''}"

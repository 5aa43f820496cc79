"""Groups of token ids to a plan of rows, positions and visibility: integers only, no model."""

from palate.forest.plan import Packing, Plan, plan_groups, plan_rows, plan_trees
from palate.forest.tree import Tree, grow_tree

__all__ = ["Packing", "Plan", "Tree", "grow_tree", "plan_groups", "plan_rows", "plan_trees"]

"""Combinations: several reward models that become one."""

from tpo_graph.rewards.combinations.combination import Combination
from tpo_graph.rewards.combinations.gate import Gate
from tpo_graph.rewards.combinations.mean_minus_deviation import MeanMinusDeviation
from tpo_graph.rewards.combinations.minimum import Minimum
from tpo_graph.rewards.combinations.part import Part, Scale
from tpo_graph.rewards.combinations.weighted_sum import WeightedSum

__all__ = ["Combination", "Gate", "MeanMinusDeviation", "Minimum", "Part", "Scale", "WeightedSum"]

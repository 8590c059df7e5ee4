"""Proximal policy optimization of a language model (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022)."""

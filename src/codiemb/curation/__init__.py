"""From documents and logs to training sets: cleaning, decontamination, mining, synthesis, and recipes of these."""

"""What may be concluded: paired contrasts, the rule of evidence, trends over sizes.

Read contrasts (differences with their intervals), evidence (the rule), loss_contrasts (what it is applied to),
arm_comparison (one arm against another), compare (the one comparison from which everything is shown) and answers (the
sentence). Beside them: controls and stopping say what is asked and whether it is answered; cells, sizes, compute,
held_out_parts and matched_loss what is measured; pooled_breaks, size_trends, resampling and looks hold the statistics.
Imports analysis.study.
"""

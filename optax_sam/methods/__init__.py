"""Published methods, each a few lines over `sharpness_aware`.

What the methods have in common, so that their own texts needn't say it:

* Norms and inner products run over all leaves together, in float32 or wider.
  A norm that is zero or not finite gives `epsilon = 0`, the step of the base
  optimizer.
* A gradient that isn't finite leaves whatever a method keeps as it was; only
  the counts of steps go on. It is handed on: wrap the base optimizer in
  `optax.apply_if_finite`, or all of `wsam_decoupled` or `b_sam`.
* Leaves that `mask` leaves out are not perturbed and belong to no norm and to
  no number of entries; they are updated like all others.
* With `axis_name`, gradients come in local and the direction goes out
  averaged. By default each device perturbs by its own gradient, as in the
  paper of SAM: m-sharpness, with m the examples of one device. Whatever a
  method keeps or decides by is averaged first.
* Plain SGD on devices averages one gradient a step. So do the methods, with
  the two numbers of `info` in the same all-reduce, and besides they average so
  many gradients or trees of that size, in float32 for Fisher information::

    method                 sync_ascent=False    sync_ascent=True
    ae_sam                 1 an ascent          1 an ascent
    ae_look_sam            1 an ascent          1 an ascent
    look_sam               1 an ascent          1 an ascent
    look_layer_sam         1 an ascent          1 an ascent
    friendly_sam           1 a step             1 a step
    wsam_decoupled         1 a step, joined     1 a step
    lookbehind             steps - 1, joined    steps a step
    sampa                  1 a step, no norm    1 a step, no norm
    b_sam                  1 a step, joined     not offered
    entropy_sgd            none, no info        not offered
    sparse_sam_fisher      1 a refresh          1 a step, 1 a refresh
    sparse_sam_dynamic     1 a refresh          1 a step
    ss_sam                 none                 1 an ascent
    m_sam                  none                 1 a part
    cr_sam                 none                 2 a step, 1 joined
    frob_sam               none                 1 + num_samples a step
    eigen_sam              1 a product          1 a step, 1 a product
    async_sam              1 a step, joined     1 a step, without info
    momentum_sam           none                 none
    lpf_sgd                none                 none
    all others             none                 1 a step

  A product is one with the Hessian, `power_steps` at a refresh, which also
  averages a number. An ascent is a step that takes the second gradient; one
  that doesn't leaves the two numbers out where it averages "1 an ascent". With
  `sync_ascent=True` `sam` in k ascent steps averages k more, not 1. What is
  joined makes the one all-reduce larger; "without info" joins the two
  gradients, and leaves the two numbers by themselves. "No norm" is joined, but
  for the norm, which all devices know, and `entropy_sgd` has no info.
* Weight decay stays outside: an element behind the method, which no ascent
  gradient sees. An L2 term inside the loss is the other convention.
* Batch norm: keep the running statistics of the clean pass. The others
  normalize by their own batch, in training mode; what they update is dropped.
* Dropout: close over one key, so that all passes of a step see one network.
* Undo a scale of the loss before the method, clip behind it. A factor on the
  loss leaves `epsilon` alone, but for `unnormalized_sam`, `fisher_sam`,
  `le_sam`, `look_layer_sam` and `b_sam`; in `frob_sam` it is one on `penalty`.
* Keep parameters in float32 or wider: bfloat16 rounds a small `epsilon` away.
* Costs count gradients, a forward and a backward pass over the whole batch. A
  forward pass is a third of one. They are those of a jitted step.
"""

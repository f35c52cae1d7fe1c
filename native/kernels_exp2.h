/* Exponentials in the templates' words. */
/* 2^x for x <= 0 (or a little above), relative error below 2e-7; less than 2^-126 below -126, NaN for NaN. The fraction is
 * in -1/2 .. 1/2; the polynomial, exact at 0, has the smallest largest relative error there of its degree (9.2e-8). */
INLINE VF vexp2(VF x) {
    x = vmax(vset1(-127.0f), x);
    VF n = vround(x), r = vsub(x, n);
    VF p = vset1(1.32646982e-3f);
    p = vfma(p, r, vset1(9.67150927e-3f));
    p = vfma(p, r, vset1(5.55073395e-2f));
    p = vfma(p, r, vset1(2.40222424e-1f));
    p = vfma(p, r, vset1(6.93147004e-1f));
    p = vfma(p, r, vset1(1.0f));
    return vscale2(p, n);
}

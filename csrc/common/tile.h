// The size of the products' tiles (tile_product.cuh), by which a host cuts its work.
#pragma once

namespace vlkd {

constexpr int kTile = 128;

} // namespace vlkd
